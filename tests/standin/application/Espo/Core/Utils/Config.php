<?php

namespace Espo\Core\Utils;

/** The configuration: PHP files that return arrays; later ones take precedence. */
class Config
{
    private $data = array();

    public function __construct()
    {
        $files = array('config', 'config-internal', 'config-override', 'config-internal-override', 'state');
        foreach ($files as $name) {
            $file = 'data/' . $name . '.php';
            if (is_file($file)) {
                $this->data = array_merge($this->data, include $file);
            }
        }
        $version = standin('version');
        if ($version !== '') {
            $this->data['version'] = $version;
        }
    }

    public function get($name, $default = null)
    {
        if (array_key_exists($name, $this->data)) {
            return $this->data[$name];
        }

        return $name === 'version' ? '9.2.7' : $default;
    }
}
