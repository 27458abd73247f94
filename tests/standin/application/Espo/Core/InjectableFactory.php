<?php

namespace Espo\Core;

/** Makes objects; of what EspoCRM injects there is only the container. */
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
