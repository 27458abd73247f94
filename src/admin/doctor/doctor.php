<?php
// espocrm-websocket doctor runs this script in EspoCRM's root as EspoCRM's user. It runs one task
// and prints the result as one line of JSON. It loads no code of EspoCRM. For PHP 5.6 and later.

call_user_func(function () {
    ini_set('display_errors', 'stderr');
    $task = json_decode((string) getenv('ESPOCRM_WEBSOCKET_DOCTOR'), true);

    // Describes this PHP.
    $info = function () {
        $unwritable = array();
        foreach (array('data', 'data/cache', 'data/logs') as $dir) {
            if (is_dir($dir) && !is_writable($dir)) {
                $unwritable[] = $dir;
            }
        }

        return array(
            'version' => PHP_VERSION,
            'sapi' => PHP_SAPI,
            'ini' => (string) php_ini_loaded_file(),
            'scanned' => trim((string) getenv('PHP_INI_SCAN_DIR')) ?: PHP_CONFIG_FILE_SCAN_DIR,
            'opcache' => extension_loaded('Zend OPcache'),
            'openssl' => extension_loaded('openssl'),
            'zmq' => class_exists('ZMQContext', false) ? (string) phpversion('zmq') : null,
            'unwritable' => $unwritable,
        );
    };

    // Finds parameters for pages that are defined in internal files, which EspoCRM does not send to
    // pages.
    $internal = function () {
        $found = array();
        $read = function ($file) {
            return include $file;
        };
        foreach (array('data/config-internal.php', 'data/config-internal-override.php') as $file) {
            if (!is_file($file)) {
                continue;
            }
            ob_start();
            $values = $read($file);
            ob_end_clean();
            foreach (array('useWebSocket', 'webSocketUrl') as $name) {
                if (is_array($values) && array_key_exists($name, $values)) {
                    $found[] = array('name' => $name, 'file' => $file);
                }
            }
        }

        return array('internal' => $found);
    };

    // Resolves a host name.
    $resolve = function () use ($task) {
        return array('addresses' => gethostbynamel($task['host']) ?: array());
    };

    // Sends a message as EspoCRM does: with a new connection, waiting up to a second for delivery.
    $send = function () use ($task) {
        $start = microtime(true);
        $context = new ZMQContext(1, false);
        $socket = $context->getSocket(ZMQ::SOCKET_PUSH);
        $socket->setSockOpt(ZMQ::SOCKOPT_LINGER, 1000);
        $socket->connect($task['dsn']);
        $socket->send($task['message']);
        $socket->disconnect($task['dsn']);
        unset($socket, $context);

        return array('ms' => (int) round(1000 * (microtime(true) - $start)));
    };

    $tasks = array(
        'info' => $info,
        'internal' => $internal,
        'resolve' => $resolve,
        'send' => $send,
    );
    try {
        $result = $tasks[$task['task']]();
    } catch (Exception $exception) {
        $result = array('error' => $exception->getMessage());
    } catch (Throwable $exception) {
        $result = array('error' => $exception->getMessage());
    }
    $options = defined('JSON_INVALID_UTF8_SUBSTITUTE') ? JSON_INVALID_UTF8_SUBSTITUTE : 0;
    echo "\nespocrm-websocket-doctor:" . json_encode($result, $options | JSON_PARTIAL_OUTPUT_ON_ERROR) . "\n";
});
