<?php
// php command.php NAME ARGUMENT…: the console commands.

include 'bootstrap.php';

if (class_exists('Espo\Core\ApplicationRunners\Command')) {
    $application = new \Espo\Core\Application();
    $application->run('Espo\Core\ApplicationRunners\Command');
}

// Before 7.0.
$application = new \Espo\Core\Application();
exit($application->runCommand(array_slice($_SERVER['argv'], 1)));
