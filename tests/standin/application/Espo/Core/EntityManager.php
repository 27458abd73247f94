<?php

namespace Espo\Core;

/** The database, in which there are only users. */
class EntityManager
{
    public function getRepository($type)
    {
        if ($type !== 'User') {
            throw new \RuntimeException("There is no repository '$type'.");
        }

        return new Users();
    }
}
