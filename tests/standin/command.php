<?php
// php command.php NAME ARGUMENT…: the console commands.

include 'bootstrap.php';

if (class_exists('Espo\Core\ApplicationRunners\Command')) {
    (new \Espo\Core\Application())->run('Espo\Core\ApplicationRunners\Command');
}

// Before 7.0.
exit((new \Espo\Core\Application())->runCommand(array_slice($_SERVER['argv'], 1)));
