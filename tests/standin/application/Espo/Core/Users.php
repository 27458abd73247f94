<?php

namespace Espo\Core;

/** A query of the users that data/standin/users states. */
class Users
{
    private $where = array();
    private $limit = array(0, null);

    public function select(array $attributes)
    {
        if ($attributes !== array('id', 'userName')) {
            throw new \RuntimeException('Only id and userName are known.');
        }

        return $this;
    }

    public function where(array $where)
    {
        $this->where = $where;

        return $this;
    }

    public function limit($offset, $count)
    {
        $this->limit = array($offset, $count);

        return $this;
    }

    public function find()
    {
        $found = array();
        foreach (json_decode(standin('users', '{}'), true) as $id => $name) {
            $user = new User(array('id' => (string) $id, 'userName' => $name));
            foreach ($this->where as $attribute => $values) {
                // As many databases do, without regard to case.
                $lower = array_map('strtolower', (array) $values);
                if (!in_array(strtolower($user->get($attribute)), $lower, true)) {
                    continue 2;
                }
            }
            $found[] = $user;
        }

        return new \ArrayIterator(array_slice($found, $this->limit[0], $this->limit[1]));
    }
}
