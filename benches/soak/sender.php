<?php
// php sender.php DSN stay|each: sends each line of standard input, and prints a line when ZeroMQ has
// accepted it. Uses one connection for all messages, or one for each, as EspoCRM does. A line that begins
// with "b" continues in hexadecimal; any other line is sent without its first character. It waits up to
// 30 seconds until a message is accepted, where EspoCRM waits for a second: the soak test stops the daemon
// for longer than that, and the messages that EspoCRM then drops are not what it tests.

function open($dsn)
{
    $context = new ZMQContext(1, false);
    $socket = $context->getSocket(ZMQ::SOCKET_PUSH);
    $socket->setSockOpt(ZMQ::SOCKOPT_LINGER, 30000);
    $socket->connect($dsn);

    return $socket;
}

$socket = $argv[2] === 'stay' ? open($argv[1]) : null;
while (($line = fgets(STDIN)) !== false) {
    $line = rtrim($line, "\n");
    $message = (string) substr($line, 1);
    if ($line[0] === 'b') {
        $message = hex2bin($message);
    }
    if ($socket) {
        $socket->send($message);
    } else {
        $once = open($argv[1]);
        $once->send($message);
        // It is closed with its context, once the message was handed over.
        unset($once);
    }
    echo "\n";
}
