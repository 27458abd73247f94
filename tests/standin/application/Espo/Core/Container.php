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
                case 'injectableFactory':
                    $this->services[$name] = new InjectableFactory($this);
                    break;
                case 'entityManager':
                    $this->services[$name] = new EntityManager();
                    break;
                default:
                    throw new \RuntimeException("There is no service '$name'.");
            }
        }

        return $this->services[$name];
    }

    /** The user of whatever runs; only the web has an address. */
    public function setupSystemUser()
    {
        $address = isset($_SERVER['REMOTE_ADDR']) ? $_SERVER['REMOTE_ADDR'] : '';
        $this->services['user'] = 'system' . $address;
    }
}
