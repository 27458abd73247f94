<?php
// espocrm-websocket health and doctor run this script. It connects to an address, sends a request
// through TLS if required, and prints the last phase it reached and the response as one line of
// JSON. It loads no code of EspoCRM. For PHP 5.6 and later.

call_user_func(function () {
    ini_set('display_errors', 'stderr');
    $task = json_decode((string) getenv('ESPOCRM_WEBSOCKET_WS_PROBE'), true);
    $result = array('now' => time());
    $warnings = array();
    set_error_handler(function ($number, $text) use (&$warnings) {
        $warnings[] = preg_replace('/^\w+\(\): /', '', $text);

        return true;
    });
    $end = function ($phase, $error) use (&$result, &$warnings) {
        $result['phase'] = $phase;
        $result['error'] = trim($warnings === array() ? $error : implode(' ', $warnings));
        $options = defined('JSON_INVALID_UTF8_SUBSTITUTE') ? JSON_INVALID_UTF8_SUBSTITUTE : 0;
        echo "\nespocrm-websocket-ws-probe:" . json_encode($result, $options | JSON_PARTIAL_OUTPUT_ON_ERROR) . "\n";
        exit;
    };
    if ($task['tls'] && !extension_loaded('openssl')) {
        $end('connect', 'PHP has no openssl extension');
    }
    $seconds = $task['seconds'];
    $context = stream_context_create(array('ssl' => array(
        'verify_peer' => $task['verify'],
        'verify_peer_name' => $task['verify'],
        'allow_self_signed' => false,
        'peer_name' => trim($task['host'], '[]'),
        'SNI_enabled' => true,
        'capture_peer_cert' => true,
        'capture_peer_cert_chain' => true,
    )));
    $url = 'tcp://' . $task['address'];
    $stream = stream_socket_client($url, $number, $error, $seconds, STREAM_CLIENT_CONNECT, $context);
    if (!$stream) {
        $end('connect', $error);
    }
    stream_set_timeout($stream, $seconds);
    fwrite($stream, $task['proxy_header']);
    if ($task['tls']) {
        $methods = STREAM_CRYPTO_METHOD_TLSv1_2_CLIENT;
        if (defined('STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT')) {
            $methods |= STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT;
        }
        if (!stream_socket_enable_crypto($stream, true, $methods)) {
            $end('tls', 'the connection was closed');
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
    $response = '';
    $until = microtime(true) + $seconds;
    while (strlen($response) < 16384 && microtime(true) < $until) {
        $piece = fread($stream, 4096);
        if ($piece === false || $piece === '') {
            break;
        }
        $response .= $piece;
        $head = strpos($response, "\r\n\r\n");
        $isOpen = preg_match('/^HTTP\/1\.1 101 /', $response);
        // A Close frame begins with 4 bytes.
        if ($head !== false && (!$isOpen || strlen($response) >= $head + 8)) {
            break;
        }
    }
    $result['response'] = base64_encode($response);
    $end('response', '');
});
