<?php

namespace Espo\Core\Console;

use Espo\Core\Container;

/** Runs commands in 7.0 and 7.1, without a status. */
class CommandManager
{
    private $container;

    public function __construct(Container $container)
    {
        $this->container = $container;
    }

    public function run(array $argv): void
    {
        $commands = new Commands($this->container);
        if ($commands->run(array_slice($argv, 1)) === 255) {
            exit(255);
        }
    }
}
