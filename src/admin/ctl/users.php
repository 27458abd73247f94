<?php
// espocrm-websocket status and kick run this script as EspoCRM's user. It prints user names by id
// as a line of JSON. For PHP 5.6 and EspoCRM 5.6 and later.

ob_start();

include 'bootstrap.php';

try {
    $application = new \Espo\Core\Application();
    $task = json_decode((string) getenv('ESPOCRM_WEBSOCKET_USERS'), true);
    $users = $application->getContainer()->get('entityManager')->getRepository('User')
        ->select(array('id', 'userName'))
        ->where(isset($task['name']) ? array('userName' => $task['name']) : array('id' => $task['ids']))
        ->limit(0, 1000)
        ->find();
    $names = array();
    foreach ($users as $user) {
        $names[$user->get('id')] = $user->get('userName');
    }
} catch (\Throwable $error) {
    // The constant STDERR is not defined for a script on standard input.
    file_put_contents('php://stderr', get_class($error) . ': ' . $error->getMessage() . "\n");
    exit(1);
}

// Discards the output of EspoCRM and PHP.
while (ob_get_level() > 0) {
    ob_end_clean();
}

$options = JSON_PARTIAL_OUTPUT_ON_ERROR | JSON_UNESCAPED_UNICODE;
if (defined('JSON_INVALID_UTF8_SUBSTITUTE')) {
    $options |= JSON_INVALID_UTF8_SUBSTITUTE;
}

echo "\nespocrm-websocket-users:" . json_encode((object) $names, $options) . "\n";
