<?php

namespace Espo\Core\Utils;

/** Called in each access check. */
class Policy
{
    public static function allows(array $options)
    {
        return true;
    }
}
