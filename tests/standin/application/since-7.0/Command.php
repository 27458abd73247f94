<?php

namespace Espo\Core\ApplicationRunners;

use Espo\Core\Container;

/** Runs a console command in 7.0 and 7.1. */
class Command
{
    public static $cli = true;
    public static $setupSystemUser = true;

    private $manager;

    public function __construct(Container $container)
    {
        $this->manager = $container->get('injectableFactory')->create('Espo\Core\Console\CommandManager');
    }

    public function run()
    {
        try {
            $this->manager->run($_SERVER['argv']);
        } catch (\Exception $exception) {
            echo 'Error: ' . $exception->getMessage() . "\n";
        }
        exit;
    }
}
