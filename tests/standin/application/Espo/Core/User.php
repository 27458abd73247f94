<?php

namespace Espo\Core;

/** A user, read only. */
class User
{
    private $values;

    public function __construct(array $values)
    {
        $this->values = $values;
    }

    public function get($attribute)
    {
        return $this->values[$attribute];
    }
}
