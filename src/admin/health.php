<?php
// Run by espocrm-websocket health for a daemon with its own TLS: sends a request through TLS and prints
// the response. The certificate is not verified: it is issued for a public name, and nothing secret is
// sent. Nothing of EspoCRM is loaded. Written for PHP 5.6 and later.

call_user_func(function () {
    ini_set('display_errors', 'stderr');
    $task = json_decode((string) getenv('ESPOCRM_WEBSOCKET_HEALTH'), true);
    $said = '';
    set_error_handler(function ($number, $text) use (&$said) {
        $said = $said ?: preg_replace('/^\w+\(\): /', '', $text);

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
        $end('error', $error ?: $said);
    }
    stream_set_timeout($stream, $task['seconds']);
    fwrite($stream, $task['introduction']);
    $methods = STREAM_CRYPTO_METHOD_TLSv1_2_CLIENT;
    if (defined('STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT')) {
        $methods |= STREAM_CRYPTO_METHOD_TLSv1_3_CLIENT;
    }
    if (!stream_socket_enable_crypto($stream, true, $methods)) {
        $end('error', 'no TLS handshake: ' . ($said ?: 'the connection was closed'));
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
        // With the first byte of a frame.
        if ($head !== false && strlen($answer) > $head + 4) {
            break;
        }
    }
    $end('answer', $answer);
});
