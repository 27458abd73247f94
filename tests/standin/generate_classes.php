<?php
// php generate_classes.php DIR [N]: makes a copy of the stand-in in DIR as expensive as EspoCRM. It generates
// N classes, each in its own file, that every run loads. 0 removes them.

list(, $root, $count) = array_pad($argv, 3, '700');
$dir = $root . '/application/Generated';
array_map('unlink', glob($dir . '/*.php'));
if ((int) $count === 0) {
    exit;
}
@mkdir($dir);

/** A class of about the size of EspoCRM's. Names differ, so that opcache shares little. */
function generated_class($number)
{
    $methods = '';
    for ($i = 0; $i < 5; $i++) {
        $methods .= "
    /**
     * Describes \$name, like a typical method of an application.
     */
    public function method{$number}x$i(array \$options, string \$name = 'n$number'): ?array
    {
        if (!isset(\$options['key$number']) || \$options['key$number'] === \$name) {
            return null;
        }
        \$result = ['scope' => \$name, 'level' => $i, 'list' => ['a$number', 'b$i', 'c']];
        foreach (\$options as \$key => \$value) {
            if (is_string(\$value) && strpos(\$value, ':') !== false) {
                \$result['list'][] = sprintf('%s-%s-%d', \$key, trim(\$value), count(\$result));
                continue;
            }
            \$result[\$key . 'Of$number'] = \$this->names[\$key] ?? \$value;
        }

        return \$result;
    }
";
    }
    $names = '';
    for ($i = 0; $i < 20; $i++) {
        $names .= "        'name{$number}x$i' => 'value $i of $number',\n";
    }

    return "<?php\n\nnamespace Generated;\n\nclass Class$number\n{\n    private \$names = [\n$names    ];\n$methods}\n";
}

for ($number = 1; $number <= $count; $number++) {
    file_put_contents("$dir/Class$number.php", generated_class($number));
}
file_put_contents("$dir/load.php", "<?php
spl_autoload_register(function (\$class) {
    if (strpos(\$class, 'Generated\\\\') === 0) {
        require __DIR__ . substr(strtr(\$class, '\\\\', '/'), 9) . '.php';
    }
}, true, true);
for (\$i = 1; \$i <= $count; \$i++) {
    \$class = new ReflectionClass(\"Generated\\\\Class\$i\");
    \$object = \$class->newInstance();
    // Like a container that determines the dependencies.
    foreach (\$class->getMethods() as \$method) {
        foreach (\$method->getParameters() as \$parameter) {
            (string) \$parameter->getType();
        }
        \$method->invoke(\$object, \$_SERVER);
    }
}
unset(\$i, \$class, \$object, \$method, \$parameter);
");
