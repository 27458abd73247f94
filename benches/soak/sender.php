<?php
// php sender.php DSN stay|each: sends each line of standard input, and prints a line when ZeroMQ has
// it. By one connection for all, or by one for each, as EspoCRM does. A line that begins with "b"
// goes on in hexadecimal, any other is sent but for its first character. It waits for half a minute until
// a message is taken, where EspoCRM waits for a second: a daemon that is stopped for longer is part
// of the soak, and what EspoCRM then gives up is not what is to be shown.

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
        // It ends with its context when that has handed it over.
        unset($once);
    }
    echo "\n";
}
