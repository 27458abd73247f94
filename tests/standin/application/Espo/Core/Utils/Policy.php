<?php

namespace Espo\Core\Utils;

/** Code that has a say in each access check. */
class Policy
{
    public static function allows(array $options)
    {
        return true;
    }
}
