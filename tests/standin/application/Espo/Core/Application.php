<?php

namespace Espo\Core;

use Espo\Core\Utils\AccessCheck;

/** Makes the container, and runs console commands. */
class Application
{
    private $container;

    public function __construct()
    {
        if (!defined('STANDIN_COMMAND')) {
            standinNote('probes', array());
            standinFail(standin('probe-failure'));
        }
        $this->container = new Container();
    }

    public function getContainer()
    {
        return $this->container;
    }

    /** The exit status. */
    public function runCommand(array $arguments)
    {
        usleep(1000 * (int) standin('delay', 0));
        standinFail(standin('failure'));

        $check = new AccessCheck($this->container->get('config'));
        $name = array_shift($arguments);
        $verdict = $check->run($name, $arguments);
        if ($verdict === null) {
            return 255;
        }
        echo $verdict;

        // Before 9.2 the exit status says nothing.
        $version = $this->container->get('config')->get('version');
        if (version_compare($version, '9.2', '<')) {
            return 0;
        }

        return $verdict === '' || strpos($verdict, 'Error:') === 0 ? 1 : 0;
    }
}
