<?php

namespace Espo\Core\Console;

use Espo\Core\Container;

/** Runs commands since 9.2: the status is the verdict. */
class CommandManager
{
    private $container;

    public function __construct(Container $container)
    {
        $this->container = $container;
    }

    public function run(array $argv): int
    {
        $this->container->setupSystemUser();
        $commands = new Commands($this->container);

        return $commands->run(array_slice($argv, 1));
    }
}
