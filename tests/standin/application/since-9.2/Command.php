<?php

namespace Espo\Core\ApplicationRunners;

use Espo\Core\Container;

/** Runs a console command since 9.2. */
class Command
{
    public static $cli = true;

    private $manager;

    public function __construct(Container $container)
    {
        $this->manager = $container->get('injectableFactory')->create('Espo\Core\Console\CommandManager');
    }

    public function run()
    {
        try {
            $status = $this->manager->run($_SERVER['argv']);
        } catch (\Exception $exception) {
            echo 'Error: ' . $exception->getMessage() . "\n";
            exit(1);
        }
        exit($status);
    }
}
