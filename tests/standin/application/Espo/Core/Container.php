<?php

namespace Espo\Core;

use Espo\Core\Utils\Config;
use Espo\Core\Utils\Metadata;

/** The services, made when they are first asked for. */
class Container
{
    private $services = array();

    public function get($name)
    {
        if (!isset($this->services[$name])) {
            switch ($name) {
                case 'config':
                    $this->services[$name] = new Config();
                    break;
                case 'metadata':
                    $this->services[$name] = new Metadata();
                    break;
                default:
                    throw new \RuntimeException("There is no service '$name'.");
            }
        }

        return $this->services[$name];
    }
}
