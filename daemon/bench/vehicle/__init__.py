"""What the vehicle's side costs and how quick it is: ``petalbus mav bench``.

best       the least time that parameters can take over a bad wire
params     how near to it bulk reading and setting come
ingest     what recording 2,000 frames a second costs, and how soon a command leaves beside them
transfers  how quickly a flight log comes
talker     a vehicle that only talks, as a process
"""
