"""What a round is: the plan, the network, the finished folder."""
