# fish completion of espocrm-websocket(8)

complete -c espocrm-websocket -f
complete -c espocrm-websocket -n __fish_use_subcommand -a run -d 'serve an EspoCRM'
complete -c espocrm-websocket -n __fish_use_subcommand -a config -d 'show the settings in force'
complete -c espocrm-websocket -n __fish_use_subcommand -a health -d 'whether a daemon serves'
complete -c espocrm-websocket -n __fish_use_subcommand -a doctor -d 'what is wrong, and what to do'
complete -c espocrm-websocket -n __fish_use_subcommand -a status -d 'how a running daemon is'
complete -c espocrm-websocket -n __fish_use_subcommand -a tail -d 'messages as they pass'
complete -c espocrm-websocket -n __fish_use_subcommand -a kick -d "end a user's connections"
complete -c espocrm-websocket -n __fish_use_subcommand -a send -d 'tell a test message'
complete -c espocrm-websocket -n __fish_use_subcommand -a reload -d 'read all settings again'
complete -c espocrm-websocket -n __fish_use_subcommand -a demo -d 'try it without EspoCRM or PHP'
complete -c espocrm-websocket -n __fish_use_subcommand -a setup -d 'configure the service'
complete -c espocrm-websocket -n __fish_use_subcommand -a adopt -d 'replace a service of websocket.php'
complete -c espocrm-websocket -n __fish_use_subcommand -a help -d 'explain'
complete -c espocrm-websocket -n __fish_use_subcommand -s h -l help -d 'explain'
complete -c espocrm-websocket -n __fish_use_subcommand -s V -l version -d 'tell the version'

set --local serving '__fish_seen_subcommand_from run config health'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status kick' -l espocrm -ra '(__fish_complete_directories)' -d "EspoCRM's root directory"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status tail kick send reload' -l config -rF -d 'our settings'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor setup adopt status kick' -l user -xa '(__fish_complete_users)' -d "the user who runs EspoCRM's PHP"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status kick' -l allow-root -d 'let PHP run as root'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status kick' -l php -rF -d "PHP's command line"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor demo' -l listen -x -d 'where browsers connect'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor' -l zeromq -x -d 'where EspoCRM connects'
complete -c espocrm-websocket -n "$serving" -l max-connections -x -d 'connections at a time'
complete -c espocrm-websocket -n "$serving" -l max-per-address -x -d 'of one client address'
complete -c espocrm-websocket -n "$serving" -l max-per-user -x -d 'of one user'
complete -c espocrm-websocket -n "$serving" -l max-buffered -x -d 'what all connections together may hold'
complete -c espocrm-websocket -n "$serving" -l trusted-proxy -x -d 'a proxy that is believed'
complete -c espocrm-websocket -n "$serving" -l proxy-protocol -d 'these proxies begin by a PROXY header'
complete -c espocrm-websocket -n "$serving" -l origin -xa same-site -d 'the only pages that may connect'
complete -c espocrm-websocket -n "$serving" -l max-checks -x -d 'PHP processes that check access'
complete -c espocrm-websocket -n "$serving" -l check-timeout -x -d 'after which a check is killed'
complete -c espocrm-websocket -n "$serving" -l recheck-interval -x -d 'between two checks of what was granted'
complete -c espocrm-websocket -n "$serving" -l ping-interval -x -d 'between two pings of a connection'
complete -c espocrm-websocket -n "$serving" -l check-cache -x -d 'for which a grant counts'
complete -c espocrm-websocket -n "$serving" -l no-worker -d 'a PHP process for each check'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from run config health doctor status tail kick send reload' -l control -rF -d 'the control socket'
complete -c espocrm-websocket -n "$serving" -l metrics -x -d 'where Prometheus asks'
complete -c espocrm-websocket -n "$serving" -l debug -d 'log each event'
complete -c espocrm-websocket -n "$serving" -l log-file -rF -d 'where the log goes'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from config' -l check -d 'tell only what is wrong'

complete -c espocrm-websocket -n '__fish_seen_subcommand_from status' -xa 'users topics connections'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from status' -l watch -d 'again and again'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from doctor status tail' -l json -d 'for programs'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from send' -l user -x -d 'to one user'

complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup' -l espocrm -ra '(__fish_complete_directories)' -d "EspoCRM's root directory"
complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup adopt doctor status tail kick send reload' -l name -x -d 'of one of several services'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup' -l at-install -d 'as packages do'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from adopt' -l undo -d 'give the replaced service back'
complete -c espocrm-websocket -n '__fish_seen_subcommand_from setup adopt doctor' -l root -ra '(__fish_complete_directories)' -d 'of another system'
