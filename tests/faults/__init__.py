"""What happens when machines die, disks are full and files are damaged: each a number of tries and of losses."""
