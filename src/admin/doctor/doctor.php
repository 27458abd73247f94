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

    // Opens a WebSocket as a browser does, without a token.
    $upgrade = function ($address, $verify) use ($task) {
        $warnings = array();
        set_error_handler(function ($number, $text) use (&$warnings) {
            $warnings[] = preg_replace('/^\w+\(\): /', '', $text);

            return true;
        });
        $failed = function ($phase, $error) use (&$warnings) {
            return array('phase' => $phase, 'error' => trim(implode(' ', $warnings) . ' ' . $error));
        };
        $context = stream_context_create(array('ssl' => array(
            'verify_peer' => $verify,
            'verify_peer_name' => $verify,
            'allow_self_signed' => false,
            'peer_name' => trim($task['host'], '[]'),
            'SNI_enabled' => true,
            'capture_peer_cert' => true,
            'capture_peer_cert_chain' => true,
        )));
        $url = 'tcp://' . $address . ':' . $task['port'];
        $stream = stream_socket_client($url, $number, $error, 10, STREAM_CLIENT_CONNECT, $context);
        if (!$stream) {
            return $failed('connect', $warnings === array() ? $error : '');
        }
        stream_set_timeout($stream, 10);
        $result = array('phase' => 'answer');
        if ($task['tls']) {
            $methods = STREAM_CRYPTO_METHOD_TLSv1_2_CLIENT;
            if (defined('STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT')) {
                $methods |= STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT;
            }
            if (!stream_socket_enable_crypto($stream, true, $methods)) {
                return $failed('tls', $warnings === array() ? 'the connection was closed' : '');
            }
            $options = stream_context_get_options($context);
            $certificate = openssl_x509_parse($options['ssl']['peer_certificate']);
            $names = isset($certificate['extensions']['subjectAltName'])
                ? $certificate['extensions']['subjectAltName'] : '';
            $result['certificate'] = array(
                'names' => str_replace(array('DNS:', 'IP Address:'), '', $names),
                'until' => (int) $certificate['validTo_time_t'],
                'from' => (int) $certificate['validFrom_time_t'],
                'self_signed' => $certificate['subject'] == $certificate['issuer'],
                'issuer' => isset($certificate['issuer']['CN']) ? $certificate['issuer']['CN'] : '',
                'length' => count($options['ssl']['peer_certificate_chain']),
            );
        }
        fwrite($stream, base64_decode($task['request']));
        $answer = '';
        $end = microtime(true) + 10;
        while (strlen($answer) < 16384 && microtime(true) < $end) {
            $piece = fread($stream, 4096);
            if ($piece === false || $piece === '') {
                break;
            }
            $answer .= $piece;
            $head = strpos($answer, "\r\n\r\n");
            $isSwitch = preg_match('/^HTTP\/1\.1 101 /', $answer);
            if ($head !== false && (!$isSwitch || strlen($answer) >= $head + 8)) {
                break;
            }
        }
        $result['answer'] = base64_encode($answer);

        return $result;
    };

    // If the certificate is invalid, connects again without verification. If the address cannot be
    // reached, tries this machine instead.
    $connect = function () use ($task, $upgrade) {
        $result = $upgrade($task['host'], true);
        if ($result['phase'] === 'tls') {
            $other = $upgrade($task['host'], false);
            $result['certificate'] = isset($other['certificate']) ? $other['certificate'] : null;
            $result['answer'] = isset($other['answer']) ? $other['answer'] : null;
        } elseif ($result['phase'] === 'connect') {
            $here = $upgrade('127.0.0.1', true);
            $result['answer'] = isset($here['answer']) ? $here['answer'] : null;
        }
        $result['now'] = time();

        return $result;
    };

    $tasks = array(
        'info' => $info,
        'internal' => $internal,
        'resolve' => $resolve,
        'send' => $send,
        'connect' => $connect,
    );
    try {
        $result = $tasks[$task['task']]();
    } catch (Exception $exception) {
        $result = array('phase' => 'exception', 'error' => $exception->getMessage());
    } catch (Throwable $exception) {
        $result = array('phase' => 'exception', 'error' => $exception->getMessage());
    }
    $options = defined('JSON_INVALID_UTF8_SUBSTITUTE') ? JSON_INVALID_UTF8_SUBSTITUTE : 0;
    echo "\nespocrm-websocket-doctor:" . json_encode($result, $options | JSON_PARTIAL_OUTPUT_ON_ERROR) . "\n";
});
