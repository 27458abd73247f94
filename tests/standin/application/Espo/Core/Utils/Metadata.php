<?php

namespace Espo\Core\Utils;

/** The metadata: JSON files of application/ and custom/, merged deeply and compiled into a PHP file. */
class Metadata
{
    private $data;

    public function get(array $path)
    {
        $value = $this->data();
        foreach ($path as $key) {
            if (!is_array($value) || !array_key_exists($key, $value)) {
                return null;
            }
            $value = $value[$key];
        }

        return $value;
    }

    private function data()
    {
        if ($this->data !== null) {
            return $this->data;
        }
        $cache = 'data/cache/application/metadata.php';
        if (is_file($cache)) {
            return $this->data = include $cache;
        }
        $this->data = array('app' => array('webSocket' => $this->merged('app/webSocket.json')));
        // Only if a test defines them: by default the entity types are unknown.
        if (is_file('custom/Espo/Custom/Resources/metadata/entityDefs.json')) {
            $this->data['entityDefs'] = $this->merged('entityDefs.json');
        }
        @mkdir(dirname($cache), 0777, true);
        $temporary = $cache . '.' . getmypid();
        file_put_contents($temporary, "<?php\nreturn " . var_export($this->data, true) . ";\n");
        rename($temporary, $cache);

        return $this->data;
    }

    private function merged($file)
    {
        $data = array();
        foreach (array('application/Espo', 'custom/Espo/Custom') as $root) {
            $path = $root . '/Resources/metadata/' . $file;
            if (is_file($path)) {
                $data = array_replace_recursive($data, json_decode(file_get_contents($path), true));
            }
        }

        return $data;
    }
}
