<?php
// php send.php DSN: sends each line of standard input as EspoCRM sends a message, with a new
// context and connection for each, and waits at most a second for it to be taken. They may arrive in
// any order.

foreach (file('php://stdin', FILE_IGNORE_NEW_LINES) as $line) {
    $context = new ZMQContext(1, false);
    $socket = $context->getSocket(ZMQ::SOCKET_PUSH);
    $socket->setSockOpt(ZMQ::SOCKOPT_LINGER, 1000);
    $socket->connect($argv[1]);
    $socket->send($line);
    $socket->disconnect($argv[1]);
    unset($socket, $context);
}
