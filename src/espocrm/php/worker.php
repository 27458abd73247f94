<?php
// Run by espocrm-websocket as the router of `php -S` in EspoCRM's root directory. Answers access
// checks like `php command.php`, in a process that keeps EspoCRM's code in opcache. Each request
// starts with a clean state, like each run of PHP. Written for PHP 7.2 and later.
//
// Request: POST / with the headers X-Secret and X-Nonce; the body is a JSON list of the arguments
// of `php command.php`. Response: 200 with X-Nonce, X-Exit-Status and the command's output. A client
// that sends back X-Compared of the previous response saves work: see compare(). A response without
// X-Exit-Status means that the daemon must run the plain command.

namespace EspocrmWebsocket;

/** Collects the command's output, and responds at the very end of the request. */
final class Answer
{
    // Longer output cannot be a verdict.
    const MAX_OUTPUT = 1048576;

    private static $nonce;
    private static $compared;
    private static $output = '';
    private static $status;
    private static $isOver = false;
    private static $failure = 500;

    /** Rejects a request before any code of EspoCRM has run. */
    public static function reject($code)
    {
        http_response_code($code);
        exit;
    }

    /** From now on, all output belongs to the command. */
    public static function begin($nonce, $compared)
    {
        self::$nonce = $nonce;
        self::$compared = $compared;
        // With this notice the daemon distinguishes a slow check from a blocked worker.
        fwrite(STDERR, 'espocrm-websocket begins ' . $nonce . "\n");
        // Called for each piece of output.
        ob_start(array(__CLASS__, 'collect'), 1);
    }

    /** The command has returned this status. It counts only if no later code fails. */
    public static function end($status)
    {
        // Called last, and not at all if another shutdown function calls exit().
        register_shutdown_function(function () use ($status) {
            self::$status = $status & 255;
        });
    }

    /** Ends the request: a worker cannot run the commands of this EspoCRM. */
    public static function unsupported()
    {
        self::$failure = 501;
        exit;
    }

    public static function collect($text, $phase)
    {
        if (self::$isOver) {
            return $text;
        }
        if (!($phase & PHP_OUTPUT_HANDLER_CLEAN)) {
            self::$output .= $text;
        }
        $isTooLong = strlen(self::$output) > self::MAX_OUTPUT;
        if (!$isTooLong && !($phase & PHP_OUTPUT_HANDLER_FINAL)) {
            return '';
        }
        self::$isOver = true;
        // The command has removed the output buffer or flushed: headers can no longer be sent.
        if (headers_sent()) {
            return '';
        }
        header_remove();
        if ($isTooLong || self::$status === null || self::hasDied()) {
            http_response_code(self::$failure);

            return '';
        }
        http_response_code(200);
        header('Content-Type: text/plain');
        header('Content-Length: ' . strlen(self::$output));
        header('X-Nonce: ' . self::$nonce);
        header('X-Compared: ' . self::$compared);
        header('X-Exit-Status: ' . self::$status);

        return self::$output;
    }

    private static function hasDied()
    {
        $error = error_get_last();
        $fatal = E_ERROR | E_PARSE | E_CORE_ERROR | E_COMPILE_ERROR | E_USER_ERROR | E_RECOVERABLE_ERROR;

        return $error !== null && ($error['type'] & $fatal) !== 0;
    }
}

/** Validates the request. Returns the nonce and the command's arguments. */
function take()
{
    $secret = getenv('ESPOCRM_WEBSOCKET_SECRET');
    $commands = explode(' ', (string) getenv('ESPOCRM_WEBSOCKET_COMMANDS'));
    $header = function ($name) {
        return isset($_SERVER[$name]) && is_string($_SERVER[$name]) ? $_SERVER[$name] : '';
    };

    if (!is_string($secret) || $secret === '' || !hash_equals($secret, $header('HTTP_X_SECRET'))) {
        Answer::reject(403);
    }
    if ($header('REQUEST_METHOD') !== 'POST') {
        Answer::reject(405);
    }
    if ($header('REQUEST_URI') !== '/') {
        Answer::reject(404);
    }
    $nonce = $header('HTTP_X_NONCE');
    if (!preg_match('/^[0-9A-Za-z]{1,64}$/D', $nonce)) {
        Answer::reject(400);
    }
    $words = json_decode((string) file_get_contents('php://input'), false, 2);
    if (!is_array($words) || $words === array()) {
        Answer::reject(400);
    }
    foreach ($words as $word) {
        // Arguments of a process cannot contain NUL.
        if (!is_string($word) || strpos($word, "\0") !== false) {
            Answer::reject(400);
        }
    }
    if ($words[0] === '' || !in_array($words[0], $commands, true)) {
        Answer::reject(403);
    }
    // The command line runs these files, this server does not.
    if (ini_get('auto_prepend_file') != '' || ini_get('auto_append_file') != '') {
        Answer::reject(501);
    }

    return array($nonce, $words);
}

/**
 * Invalidates compiled files that have changed while their modification time is the same, such as
 * after `rsync -t` or if a directory was replaced: opcache compares only that time. The change time
 * (ctime) cannot be set. A file may be a different one if it, or a directory above it, has changed
 * since opcache last used it.
 *
 * This takes 1 to 3 ms and is therefore not repeated within a second. Returns the time of the last
 * comparison.
 */
function compare()
{
    $now = time();
    $last = isset($_SERVER['HTTP_X_COMPARED']) ? (int) $_SERVER['HTTP_X_COMPARED'] : 0;
    if ($last === $now || $last === $now - 1) {
        return $last;
    }
    if (!extension_loaded('Zend OPcache') || !ini_get('opcache.enable')) {
        return $now;
    }
    // php.ini may disable these functions.
    $canAsk = function_exists('opcache_get_status') && function_exists('opcache_invalidate');
    $status = $canAsk ? @opcache_get_status(true) : false;
    if ($status === false) {
        Answer::reject(501);
    }
    $scripts = isset($status['scripts']) ? $status['scripts'] : array();
    $root = (string) realpath($_SERVER['DOCUMENT_ROOT']);
    $known = array();
    foreach ($scripts as $script) {
        $path = $script['full_path'];
        $changed = $path === __FILE__ ? false : @filectime($path);
        // opcache itself detects missing files.
        if ($changed === false) {
            continue;
        }
        $dir = dirname($path);
        if (strncmp($dir . '/', $root . '/', strlen($root) + 1) === 0) {
            $changed = max($changed, changeTime($dir, $root, $known));
        }
        // + 1: within one second after a comparison, files are used without being compared.
        if ($changed + 1 >= $script['last_used_timestamp']) {
            opcache_invalidate($path, true);
        }
    }
    clearstatcache();
    error_clear_last();

    return $now;
}

/** The latest change or move of a directory or a directory above it, up to the root. */
function changeTime($dir, $root, array &$known)
{
    if (!isset($known[$dir])) {
        $own = @filectime($dir);
        $own = $own === false ? PHP_INT_MAX : $own;
        $isLast = strlen($dir) <= strlen($root);
        $known[$dir] = $isLast ? $own : max($own, changeTime(dirname($dir), $root, $known));
    }

    return $known[$dir];
}

/** Prepares the same environment as for `php command.php`. */
function prepare(array $words)
{
    $root = $_SERVER['DOCUMENT_ROOT'];
    $time = array($_SERVER['REQUEST_TIME_FLOAT'], $_SERVER['REQUEST_TIME']);
    $hasEnvironment = $_ENV !== array();

    // For this request only.
    putenv('ESPOCRM_WEBSOCKET_SECRET');
    putenv('ESPOCRM_WEBSOCKET_COMMANDS');
    $arguments = array_merge(array('command.php'), $words);
    $_SERVER = getenv();
    $_ENV = $hasEnvironment ? $_SERVER : array();
    foreach (array('PHP_SELF', 'SCRIPT_NAME', 'SCRIPT_FILENAME', 'PATH_TRANSLATED') as $name) {
        $_SERVER[$name] = 'command.php';
    }
    $_SERVER['DOCUMENT_ROOT'] = '';
    list($_SERVER['REQUEST_TIME_FLOAT'], $_SERVER['REQUEST_TIME']) = $time;
    $_SERVER['argv'] = $GLOBALS['argv'] = $arguments;
    $_SERVER['argc'] = $GLOBALS['argc'] = count($arguments);
    $_GET = $_POST = $_COOKIE = $_FILES = $_REQUEST = array();

    // Only the PHP CLI defines these constants. EspoCRM prints with STDOUT.
    define('STDIN', fopen('php://stdin', 'rb'));
    define('STDOUT', fopen('php://output', 'wb'));
    define('STDERR', fopen('php://stderr', 'wb'));

    // Only the command line can print errors to standard error.
    if (strtolower((string) ini_get('display_errors')) === 'stderr') {
        ini_set('display_errors', '0');
    }

    chdir($root);
}

/** Runs the command like EspoCRM's own runner. Returns its exit status. */
function run()
{
    $runner = 'Espo\Core\ApplicationRunners\Command';
    $class = 'Espo\Core\Console\CommandManager';
    // Since EspoCRM 7.0.
    if (
        !class_exists('Espo\Core\Application') || !class_exists($runner)
        || !method_exists('Espo\Core\Application', 'setupSystemUser')
        || !method_exists($class, 'run')
    ) {
        Answer::unsupported();
    }
    $application = new \Espo\Core\Application();
    // In later versions the command manager does this.
    $runner = new \ReflectionClass($runner);
    if ($runner->getStaticPropertyValue('setupSystemUser', false)) {
        $application->setupSystemUser();
    }
    $manager = $application->getContainer()->get('injectableFactory')->create($class);
    try {
        return (int) $manager->run($_SERVER['argv']);
    } catch (\Exception $exception) {
        echo 'Error: ' . $exception->getMessage() . "\n";
        // Before 7.2 there was no exit status.
        $type = (new \ReflectionMethod($manager, 'run'))->getReturnType();

        return $type !== null && $type->getName() === 'int' ? 1 : 0;
    }
}

// In a function, so that no variables remain in the global scope of the command.
call_user_func(function () {
    list($nonce, $words) = take();
    $compared = compare();
    prepare($words);
    Answer::begin($nonce, $compared);
});

require getcwd() . '/bootstrap.php';

Answer::end(run());
