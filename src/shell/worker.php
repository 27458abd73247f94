<?php http_response_code(501);
