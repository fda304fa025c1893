"""Power cuts, simulated: which states of the disk can one leave, and does a store survive each?"""
