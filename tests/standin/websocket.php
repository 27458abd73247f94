<?php
// Replaces EspoCRM's own daemon; the one under test runs instead.
exit(1);
