from rlx.cli.commands import main

main()
