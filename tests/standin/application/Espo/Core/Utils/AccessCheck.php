<?php

namespace Espo\Core\Utils;

/** The console commands that check access. */
class AccessCheck
{
    private $config;

    public function __construct(Config $config)
    {
        $this->config = $config;
    }

    /** The output of a command; null for an unknown one. */
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
        if (strpos($token, 'tok-') !== 0 || self::lists('bad-tokens', $token)) {
            return '';
        }
        $owner = substr($token, 4);

        // The old command does not compare the user.
        return $this->isOld() || $owner === $userId ? $owner : '';
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
            throw new \RuntimeException("Scope 'Unknown' does not exist.");
        }
        $hasRecord = $options['id'] !== '' || $options['scope'] === 'Calendar';
        if ($options['userId'] === '' || $options['scope'] === '' || !$hasRecord) {
            return '';
        }
        if (strpos($options['id'], 'deny') === 0 || self::lists('denied', $options['id'])) {
            return '';
        }
        $table = self::table($options['userId']);
        if (in_array($options['id'], $table['denied'], true) || !Policy::allows($options)) {
            return '';
        }
        $isPortal = strpos($options['userId'], 'portal') === 0;

        return $isPortal && !$this->isOld() ? 'truetrue' : 'true';
    }

    /** The permissions of the user's roles, cached in a PHP file until it is removed or replaced. */
    private static function table($userId)
    {
        if (!preg_match('/^[A-Za-z0-9_-]+$/D', $userId)) {
            return array('denied' => array());
        }
        $file = 'data/cache/application/acl/' . $userId . '.php';
        // Another process may clear the cache meanwhile.
        $cached = is_file($file) ? @include $file : null;
        if (is_array($cached)) {
            return $cached;
        }
        $table = array('denied' => self::items('denied-' . $userId));
        @mkdir(dirname($file), 0777, true);
        $temporary = $file . '.' . getmypid();
        if (@file_put_contents($temporary, "<?php\nreturn " . var_export($table, true) . ";\n")) {
            @rename($temporary, $file);
        }

        return $table;
    }

    private function isOld()
    {
        return version_compare($this->config->get('version'), '9.2', '<');
    }

    private static function lists($name, $item)
    {
        return in_array($item, self::items($name), true);
    }

    private static function items($name)
    {
        return preg_split('/\s+/', standin($name), -1, PREG_SPLIT_NO_EMPTY);
    }
}
