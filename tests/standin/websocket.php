<?php
// Where EspoCRM's own daemon would be; the one under test runs in its place.
exit(1);
