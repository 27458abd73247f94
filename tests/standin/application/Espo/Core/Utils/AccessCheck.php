<?php

namespace Espo\Core\Utils;

/** The console commands that answer access checks. */
class AccessCheck
{
    private $config;

    public function __construct(Config $config)
    {
        $this->config = $config;
    }

    /** What the command prints; null for an unknown one. */
    public function run($name, array $arguments)
    {
        switch ($name) {
            case 'AuthTokenCheck':
                return $this->token($arguments);
            case 'AclCheck':
                return $this->access($arguments);
            case 'CustomCheck':
                return $arguments === array('yes') ? 'true' : '';
        }

        return null;
    }

    private function token(array $arguments)
    {
        list($token, $userId) = array_pad($arguments, 2, '');
        $isOld = version_compare($this->config->get('version'), '9.2', '<');
        if (strpos($token, 'tok-') !== 0 || self::lists('bad-tokens', $token)) {
            return '';
        }
        $owner = substr($token, 4);

        // The old command did not know for whom it was asked.
        return $isOld || $owner === $userId ? $owner : '';
    }

    private function access(array $arguments)
    {
        $options = array();
        foreach ($arguments as $argument) {
            if (preg_match('/^--([A-Za-z]+)=(.*)$/', $argument, $match)) {
                $options[$match[1]] = $match[2];
            }
        }
        $options += array('userId' => '', 'scope' => '', 'id' => '', 'action' => '');
        if ($options['scope'] === 'Unknown') {
            return "Error: Scope 'Unknown' does not exist.";
        }
        $hasRecord = $options['id'] !== '' || $options['scope'] === 'Calendar';
        if ($options['userId'] === '' || $options['scope'] === '' || !$hasRecord) {
            return '';
        }
        if (strpos($options['id'], 'deny') === 0 || self::lists('denied', $options['id'])) {
            return '';
        }

        return 'true';
    }

    private static function lists($name, $item)
    {
        return in_array($item, preg_split('/\s+/', standin($name), -1, PREG_SPLIT_NO_EMPTY), true);
    }
}
