<?php

namespace Espo\Core\Console;

use Espo\Core\Container;

/** Runs commands from 7.2 to 9.1: the status does not depend on the verdict. */
class CommandManager
{
    private $container;

    public function __construct(Container $container)
    {
        $this->container = $container;
    }

    public function run(array $argv): int
    {
        $commands = new Commands($this->container);
        $status = $commands->run(array_slice($argv, 1));

        return $status === 1 ? 0 : $status;
    }
}
