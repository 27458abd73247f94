<?php
// php command.php NAME ARGUMENT…: the console commands.

if (substr(php_sapi_name(), 0, 3) !== 'cli') {
    exit(1);
}

include 'bootstrap.php';

define('STANDIN_COMMAND', true);

$arguments = array_slice($_SERVER['argv'], 1);
standinNote('runs', $arguments);

$application = new \Espo\Core\Application();
exit($application->runCommand($arguments));
