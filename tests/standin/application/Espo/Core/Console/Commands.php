<?php

namespace Espo\Core\Console;

use Espo\Core\Container;
use Espo\Core\Utils\AccessCheck;

/** The commands: those for access checks, and those of extensions. */
class Commands
{
    private $container;

    public function __construct(Container $container)
    {
        $this->container = $container;
    }

    /** Returns the status as since 9.2, and 255 for an unknown command. */
    public function run(array $arguments)
    {
        usleep(1000 * (int) standin('delay', 0));
        $config = $this->container->get('config');
        if ($this->container->get('user') !== 'system') {
            throw new \LogicException('The system user is not set up.');
        }
        $failure = standin('failure');
        switch ($failure) {
            case 'error':
                throw new \RuntimeException('SQLSTATE[HY000] [2002] Connection refused');
            case 'noise':
                echo 'Notice: something else';
                return 0;
        }
        standinFail($failure);

        $name = array_shift($arguments);
        $extension = 'custom/commands/' . $name . '.php';
        if (preg_match('/^[A-Za-z]+$/D', $name) && is_file($extension)) {
            $container = $this->container;

            return (int) require $extension;
        }
        $check = new AccessCheck($config);
        $verdict = $check->run($name, $arguments);
        if ($verdict === null) {
            return 255;
        }
        fwrite(STDOUT, $verdict);

        return $verdict === '' ? 1 : 0;
    }
}
