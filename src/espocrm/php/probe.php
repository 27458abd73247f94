<?php
// Run by espocrm-websocket in EspoCRM's root directory. Prints the settings of this EspoCRM, as its
// own code reads them, in one line of JSON. Written for PHP 5.6 and later.

// EspoCRM's commands answer reliably only if the PHP CLI runs them.
if (PHP_SAPI !== 'cli') {
    echo "\nespocrm-websocket-sapi:" . PHP_SAPI . "\n";
    exit(1);
}

ob_start();

include 'bootstrap.php';

$application = new \Espo\Core\Application();
$container = $application->getContainer();
$config = $container->get('config');

$parameters = array();
foreach (array(
    'version',
    'phpExecutablePath',
    'siteUrl',
    'useWebSocket',
    'webSocketDebugMode',
    'webSocketMessager',
    'webSocketPort',
    'webSocketSslCertificateFile',
    'webSocketSslCertificateLocalPrivateKey',
    'webSocketSslCertificatePassphrase',
    'webSocketUrl',
    'webSocketUseSecureServer',
    'webSocketZeroMQSubmissionDsn',
    'webSocketZeroMQSubscriberDsn',
) as $name) {
    $parameters[$name] = $config->get($name);
}

$metadata = $container->get('metadata');

// Without EspoCRM's cache the daemon could not detect new entity types.
$entityTypes = null;
if ($config->get('useCache')) {
    $entityTypes = array_map('strval', array_keys((array) $metadata->get(array('entityDefs'))));
}

$settings = array(
    'php' => PHP_VERSION,
    'opcache' => extension_loaded('Zend OPcache'),
    'parameters' => $parameters,
    'categories' => $metadata->get(array('app', 'webSocket', 'categories')),
    'entityTypes' => $entityTypes,
);

// Discard all output of EspoCRM and PHP so far.
while (ob_get_level() > 0) {
    ob_end_clean();
}

$options = JSON_PARTIAL_OUTPUT_ON_ERROR;
if (defined('JSON_INVALID_UTF8_SUBSTITUTE')) {
    $options |= JSON_INVALID_UTF8_SUBSTITUTE;
}

echo "\nespocrm-websocket-probe:" . json_encode($settings, $options) . "\n";
