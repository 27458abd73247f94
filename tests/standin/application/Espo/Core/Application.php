<?php

namespace Espo\Core;

use Espo\Core\Console\Commands;

/** Creates the container, and runs console commands. */
class Application
{
    private $container;

    public function __construct()
    {
        // A script that includes bootstrap.php may set argv to run a command.
        if (isset($_SERVER['argv'][0]) && basename($_SERVER['argv'][0]) === 'command.php') {
            define('STANDIN_COMMAND', true);
            $how = PHP_SAPI === 'cli' ? 'plain' : 'worker';
            if (standinIsSelfCheck()) {
                standinNote('self-checks', $how);
            } else {
                standinNote('runs', json_encode(array_slice($_SERVER['argv'], 1)));
                standinNote('how', $how);
            }
        } else {
            standinNote('probes', '[]');
            standinFail(standin('probe-failure'));
        }
        $this->container = new Container();
    }

    public function getContainer()
    {
        return $this->container;
    }

    /** Must be called before commands run. */
    public function setupSystemUser()
    {
        $this->container->setupSystemUser();
    }

    /** Runs a runner, since 7.0. */
    public function run($class)
    {
        $runner = new \ReflectionClass($class);
        if ($runner->getStaticPropertyValue('cli', false) && substr(php_sapi_name(), 0, 3) !== 'cli') {
            die('Only for the command line.');
        }
        if ($runner->getStaticPropertyValue('setupSystemUser', false)) {
            $this->setupSystemUser();
        }
        $this->container->get('injectableFactory')->create($class)->run();
    }

    /** Runs a command before 7.0. Returns the exit status. */
    public function runCommand(array $arguments)
    {
        $this->setupSystemUser();
        $commands = new Commands($this->container);
        try {
            return $commands->run($arguments) === 255 ? 255 : 0;
        } catch (\Exception $exception) {
            echo 'Error: ' . $exception->getMessage() . "\n";

            return 0;
        }
    }
}
