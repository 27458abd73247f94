<?php
// php faulty.php FAULT …: prints the start message of PHP's web server and then sends invalid responses. The
// verdicts in them must never be used.

$fault = $argv[1];
file_put_contents('data/standin/starts', "$fault\n", FILE_APPEND);

function announce($address)
{
    fwrite(STDERR, "[Mon Jan  1 00:00:00 2024] PHP 8.2.7 Development Server (http://$address) started\n");
}

function grant($nonce, $announced, $body = 'true')
{
    return "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/plain\r\n"
        . "Content-Length: $announced\r\nX-Nonce: $nonce\r\nX-Exit-Status: 0\r\n\r\n$body";
}

switch ($fault) {
    case 'exits':
        exit(1);
    case 'silent':
        sleep(600);
        exit;
    case 'other-address':
        announce('192.0.2.1:80');
        sleep(600);
        exit;
}

$server = stream_socket_server('tcp://127.0.0.1:0');
$address = stream_socket_get_name($server, false);
if ($fault === 'closed-port') {
    fclose($server);
    announce($address);
    sleep(600);
    exit;
}
announce($address);

while (true) {
    $tcp = stream_socket_accept($server, -1);
    if ($fault === 'resets') {
        // Closed with unread input: the connection is reset.
        fclose($tcp);
        continue;
    }
    $request = '';
    while (!preg_match('/\r\n\r\n\[.*\]$/s', $request)) {
        $request .= fread($tcp, 65536);
    }
    preg_match('/X-Nonce: (\w+)/', $request, $match);
    $nonce = $match[1];
    switch ($fault) {
        case 'garbage':
            @fwrite($tcp, random_bytes(10000));
            break;
        case 'closes':
            break;
        case 'half-head':
            fwrite($tcp, substr(grant($nonce, 4), 0, 60));
            break;
        case 'body-too-short':
            fwrite($tcp, grant($nonce, 5));
            break;
        case 'body-too-long':
            fwrite($tcp, grant($nonce, 3));
            break;
        case 'no-body':
            fwrite($tcp, grant($nonce, 4, ''));
            break;
        case 'no-length':
            fwrite($tcp, preg_replace('/Content-Length.*\r\n/', '', grant($nonce, 4)));
            break;
        case 'wrong-nonce':
            fwrite($tcp, grant(strrev($nonce) . '0', 4));
            break;
        case 'no-nonce':
            fwrite($tcp, preg_replace('/X-Nonce.*\r\n/', '', grant($nonce, 4)));
            break;
        case 'no-status':
            fwrite($tcp, preg_replace('/X-Exit-Status.*\r\n/', '', grant($nonce, 4)));
            break;
        case 'two-responses':
            fwrite($tcp, grant($nonce, 4) . grant($nonce, 4));
            break;
        case 'status-500':
            fwrite($tcp, str_replace('200 OK', '500 Internal Server Error', grant($nonce, 4)));
            break;
        case 'status-403':
            fwrite($tcp, str_replace('200 OK', '403 Forbidden', grant($nonce, 4)));
            break;
        case 'status-302':
            fwrite($tcp, str_replace('200 OK', '302 Found', grant($nonce, 4)));
            break;
        case 'endless':
            while (@fwrite($tcp, str_repeat('x', 65536))) {
            }
            break;
        case 'huge-body':
            @fwrite($tcp, grant($nonce, 67108864, str_repeat('x', 67108864)));
            break;
        case 'huge-head':
            $head = str_repeat('X-More: ' . str_repeat('x', 1000) . "\r\n", 10000);
            @fwrite($tcp, str_replace('X-Nonce', $head . 'X-Nonce', grant($nonce, 4)));
            break;
        case 'exits-on-request':
            exit(0);
        case 'hangs':
            sleep(600);
            exit;
        case 'hangs-in-body':
            fwrite($tcp, grant($nonce, 5));
            sleep(600);
            exit;
        case 'late':
            sleep(6);
            @fwrite($tcp, grant($nonce, 4));
            break;
        case 'second-response':
            // The correct response, and another one after it.
            $command = array_merge(
                array('php', 'command.php'),
                json_decode(substr($request, strpos($request, "\r\n\r\n")))
            );
            exec(implode(' ', array_map('escapeshellarg', $command)), $output, $status);
            $text = implode("\n", $output);
            $output = array();
            $answer = grant($nonce, strlen($text), $text);
            $right = str_replace('Status: 0', "Status: $status", $answer);
            fwrite($tcp, $right);
            // After the daemon has read that one and closed its side.
            stream_set_timeout($tcp, 30);
            fread($tcp, 1);
            @fwrite($tcp, grant($nonce, 4));
            break;
    }
    fclose($tcp);
}
