# bash completion of espocrm-websocket(8)

_espocrm_websocket() {
    local cur prev words cword
    _init_completion || return

    case $prev in
        --config | --php | --log-file | --control)
            _filedir
            return
            ;;
        --espocrm | --root)
            _filedir -d
            return
            ;;
        --origin)
            COMPREPLY=($(compgen -W same-site -- "$cur"))
            return
            ;;
        --listen | --zeromq | --max-connections | --max-per-address | --max-per-user | --max-buffered | --trusted-proxy | --max-checks | \
            --check-timeout | --recheck-interval | --ping-interval | --check-cache | --metrics | --name | --user)
            return
            ;;
    esac

    local settings="--espocrm --config --user --allow-root --php --listen --zeromq --max-connections --max-per-address --max-per-user --max-buffered
        --trusted-proxy --proxy-protocol --origin --max-checks --check-timeout --recheck-interval --ping-interval
        --check-cache --no-worker --control --metrics --debug --log-file"
    local daemon="--name --control --config"
    local php="--espocrm --php --user --allow-root"
    local offered
    case ${words[1]} in
        run | health | */*) offered=$settings ;;
        config) offered="$settings --check" ;;
        doctor) offered="--espocrm --json --user --allow-root --php --listen --zeromq --root $daemon" ;;
        status) offered="users topics connections --watch --json $daemon $php" ;;
        tail) offered="--json $daemon" ;;
        kick) offered="$daemon $php" ;;
        reload) offered=$daemon ;;
        send) offered="--user $daemon" ;;
        demo) offered=--listen ;;
        setup) offered="--espocrm --name --user --at-install --root" ;;
        adopt) offered="--undo --name --user --root" ;;
        *) offered="run config health doctor status tail kick send reload demo setup adopt help --help --version" ;;
    esac
    COMPREPLY=($(compgen -W "$offered" -- "$cur"))
} && complete -F _espocrm_websocket espocrm-websocket
