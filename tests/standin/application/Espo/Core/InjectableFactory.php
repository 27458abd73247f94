<?php

namespace Espo\Core;

/** Creates objects. Injects only the container. */
class InjectableFactory
{
    private $container;

    public function __construct(Container $container)
    {
        $this->container = $container;
    }

    public function create($class)
    {
        return new $class($this->container);
    }
}
