<?php
// espocrm-websocket health runs this script for a daemon that terminates TLS. It sends a request
// through TLS and prints the response. The certificate is not verified: it is issued for a public
// name, and the request contains no secret. The script loads no code of EspoCRM. For PHP 5.6 and
// later.

call_user_func(function () {
    ini_set('display_errors', 'stderr');
    $task = json_decode((string) getenv('ESPOCRM_WEBSOCKET_HEALTH'), true);
    $warning = '';
    set_error_handler(function ($number, $text) use (&$warning) {
        $warning = $warning ?: preg_replace('/^\w+\(\): /', '', $text);

        return true;
    });
    $end = function ($kind, $text) {
        echo "\nespocrm-websocket-health-" . $kind . ':' . base64_encode($text) . "\n";
        exit;
    };
    if (!extension_loaded('openssl')) {
        $end('error', 'PHP has no openssl extension');
    }
    $until = microtime(true) + $task['seconds'];
    $context = stream_context_create(array('ssl' => array(
        'verify_peer' => false,
        'verify_peer_name' => false,
        'allow_self_signed' => true,
    )));
    $url = 'tcp://' . $task['address'];
    $stream = stream_socket_client($url, $number, $error, $task['seconds'], STREAM_CLIENT_CONNECT, $context);
    if (!$stream) {
        $end('error', $error ?: $warning);
    }
    stream_set_timeout($stream, $task['seconds']);
    fwrite($stream, $task['proxy_header']);
    $methods = STREAM_CRYPTO_METHOD_TLSv1_2_CLIENT;
    if (defined('STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT')) {
        $methods |= STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT;
    }
    if (!stream_socket_enable_crypto($stream, true, $methods)) {
        $end('error', 'the TLS handshake failed: ' . ($warning ?: 'the connection was closed'));
    }
    fwrite($stream, $task['request']);
    $answer = '';
    while (strlen($answer) < 4096 && microtime(true) < $until) {
        $piece = fread($stream, 4096);
        if ($piece === false || $piece === '') {
            break;
        }
        $answer .= $piece;
        $head = strpos($answer, "\r\n\r\n");
        // The response includes the first byte of a frame.
        if ($head !== false && strlen($answer) > $head + 4) {
            break;
        }
    }
    $end('answer', $answer);
});
