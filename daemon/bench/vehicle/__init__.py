"""What the vehicle's side costs and how quick it is: ``petalbus mav bench``.

best       the least time that parameters can take over a bad wire
params     how near to it bulk reading and setting come, and how soon a wrong type is told
ingest     what recording 2,000 frames a second costs, and how soon a command leaves beside them
transfers  how quickly a flight log comes, and all parameters as a file over a bad wire
damage     what is found between damaged packets
gaps       whether bulk operations hold up other records and heartbeats
rig        a link with its clients, and a simulated vehicle at its other end
talker     a vehicle that only talks, as a process
flyer      a simulated vehicle as a process
lines      each figure with its target
"""
