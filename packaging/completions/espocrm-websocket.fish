# fish completion of espocrm-websocket(8)

complete -c espocrm-websocket -f
complete -c espocrm-websocket -n __fish_use_subcommand -a run -d 'serve an EspoCRM'
complete -c espocrm-websocket -n __fish_use_subcommand -a config -d 'print the effective settings'
complete -c espocrm-websocket -n __fish_use_subcommand -a health -d 'check that a daemon serves'
complete -c espocrm-websocket -n __fish_use_subcommand -a doctor -d 'find problems and their fixes'
complete -c espocrm-websocket -n __fish_use_subcommand -a status -d 'show the state of a running daemon'
complete -c espocrm-websocket -n __fish_use_subcommand -a tail -d 'print messages as they are published'
complete -c espocrm-websocket -n __fish_use_subcommand -a kick -d 'end the connections of a user'
complete -c espocrm-websocket -n __fish_use_subcommand -a send -d 'publish a test message'
complete -c espocrm-websocket -n __fish_use_subcommand -a reload -d 'reload all settings'
complete -c espocrm-websocket -n __fish_use_subcommand -a demo -d 'serve a demo page without EspoCRM or PHP'
complete -c espocrm-websocket -n __fish_use_subcommand -a setup -d 'configure the service'
complete -c espocrm-websocket -n __fish_use_subcommand -a adopt -d 'replace a unit for websocket.php'
complete -c espocrm-websocket -n __fish_use_subcommand -a help -d 'print the commands and options'
complete -c espocrm-websocket -n __fish_use_subcommand -s h -l help -d 'print the commands and options'
complete -c espocrm-websocket -n __fish_use_subcommand -s V -l version -d 'print the version'

set --local serving '__fish_seen_subcommand_from run config health'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status kick' -l espocrm -ra '(__fish_complete_directories)' -d "EspoCRM's root directory"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status tail kick send reload' -l config -rF -d 'configuration file'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor setup adopt status kick' -l user -xa '(__fish_complete_users)' -d "the user who runs EspoCRM's PHP"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status kick' -l allow-root -d 'allow PHP to run as root'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status kick' -l php -rF -d "PHP's command line"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor demo' -l listen -x -d 'address for browsers'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor' -l zeromq -x -d "address for EspoCRM's messages"
complete -c espocrm-websocket -n "$serving" -l max-connections -x -d 'maximum number of connections'
complete -c espocrm-websocket -n "$serving" -l max-per-address -x -d 'maximum of one client address'
complete -c espocrm-websocket -n "$serving" -l max-per-user -x -d 'maximum of one user'
complete -c espocrm-websocket -n "$serving" -l max-buffered -x -d 'buffer memory of all connections'
complete -c espocrm-websocket -n "$serving" -l trusted-proxy -x -d 'proxy whose X-Forwarded-For is trusted'
complete -c espocrm-websocket -n "$serving" -l proxy-protocol -d 'trusted proxies send a PROXY header'
complete -c espocrm-websocket -n "$serving" -l origin -xa same-site -d 'allowed origin of pages'
complete -c espocrm-websocket -n "$serving" -l max-checks -x -d 'maximum number of PHP processes for access checks'
complete -c espocrm-websocket -n "$serving" -l check-timeout -x -d 'maximum duration of an access check'
complete -c espocrm-websocket -n "$serving" -l recheck-interval -x -d 'how often granted access is checked again'
complete -c espocrm-websocket -n "$serving" -l ping-interval -x -d 'how often a ping is sent'
complete -c espocrm-websocket -n "$serving" -l check-cache -x -d 'how long a positive check result is reused'
complete -c espocrm-websocket -n "$serving" -l no-worker -d 'run each check in a separate PHP process'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status tail kick send reload' -l control -rF -d 'control socket'
complete -c espocrm-websocket -n "$serving" -l metrics -x -d 'address of the Prometheus endpoints'
complete -c espocrm-websocket -n "$serving" -l debug -d 'log each event'
complete -c espocrm-websocket -n "$serving" -l log-file -rF -d 'log file'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from config' -l check -d 'print only errors'

complete -c espocrm-websocket -n '__fish_seen_subcommand_from status' -xa 'users topics connections'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from status' -l watch -d 'update every second'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from doctor status tail' -l json -d 'print JSON'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from send' -l user -x -d 'only to this user'

complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup' -l espocrm -ra '(__fish_complete_directories)' -d "EspoCRM's root directory"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup adopt doctor status tail kick send reload' -l name -x -d 'name of the service'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup' -l at-install -d 'for packages: start nothing'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from adopt' -l undo -d 'restore the replaced unit'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup adopt doctor' -l root -ra '(__fish_complete_directories)' -d 'root directory of another system'
