<?php
// Included first by everything that runs in the stand-in.

chdir(__DIR__);

spl_autoload_register(function ($class) {
    // Classes that later versions of EspoCRM have added or changed.
    switch ($class) {
        case 'Espo\Core\ApplicationRunners\Command':
        case 'Espo\Core\Console\CommandManager':
            $version = standinVersion();
            if (version_compare($version, '7.0', '<')) {
                return;
            }
            $since = version_compare($version, '7.2', '<') ? '7.0' : '7.2';
            $since = version_compare($version, '9.2', '<') ? $since : '9.2';
            require __DIR__ . '/application/since-' . $since . '/' . basename(strtr($class, '\\', '/')) . '.php';
            return;
    }
    $file = __DIR__ . '/application/' . str_replace('\\', '/', $class) . '.php';
    if (is_file($file)) {
        require $file;
    }
});

/** A setting of the stand-in, from a file in data/standin or else from the environment. */
function standin($name, $default = '')
{
    $file = __DIR__ . '/data/standin/' . $name;
    if (is_file($file)) {
        return trim(file_get_contents($file));
    }
    $value = getenv('STANDIN_' . strtoupper(str_replace('-', '_', $name)));

    return $value === false ? $default : $value;
}

/** The claimed version of EspoCRM. */
function standinVersion()
{
    $config = new \Espo\Core\Utils\Config();

    return $config->get('version');
}

/** Appends a line to a file for the tests. */
function standinNote($file, $line)
{
    $dir = __DIR__ . '/data/standin';
    if (!is_dir($dir)) {
        @mkdir($dir);
    }
    file_put_contents($dir . '/' . $file, $line . "\n", FILE_APPEND | LOCK_EX);
}

/** Whether this is the daemon's self-check with a random token. */
function standinIsSelfCheck()
{
    list(, $name, $token, $user) = array_pad($_SERVER['argv'], 4, '');

    return $name === 'AuthTokenCheck' && preg_match('/^[0-9a-f]{32}$/D', $token)
        && preg_match('/^[0-9a-f]{17}$/D', $user);
}

/** Fails in the way that a test has chosen. */
function standinFail($failure)
{
    switch ($failure) {
        case '':
            return;
        case 'exit255':
            exit(255);
        case 'error':
            echo "Error: SQLSTATE[HY000] [2002] Connection refused";
            exit(1);
        case 'hang':
            while (true) {
                sleep(60);
            }
        case 'killed':
            posix_kill(getmypid(), 9);
            sleep(60);
        case 'noise':
            echo "Notice: something else";
            exit(0);
        case 'flood':
            while (true) {
                echo str_repeat('x', 65536);
            }
        case 'crash':
            throw new Error('on purpose');
        case 'missing-class':
            ini_set('display_errors', '0');
            set_exception_handler(function () {
                exit(0);
            });
            new \Espo\Core\Missing();
        case 'nothing':
            exit(0);
    }
}

// The classes of generate_classes.php: as many as EspoCRM loads.
if (is_file(__DIR__ . '/application/Generated/load.php')) {
    require __DIR__ . '/application/Generated/load.php';
}
