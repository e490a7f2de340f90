import type { Clock } from './clock.ts'
import type { Device } from './device.ts'

/** Messages a second of the whole fleet, at most. */
const FLEET_RATE = 400
/** Messages a second of one device, at most: brokers allow 50. */
const DEVICE_RATE = 10
const TICK_MS = 20

export interface Traffic {
  /** Devices that have left the fleet send no more. */
  stop(devices: ReadonlySet<Device>): void
  end(): void
}

/** Lets the devices publish in turn, at a rate that depends on their number alone, until `end`. */
export function startTraffic(devices: readonly Device[], clock: Clock): Traffic {
  const ratePerMs = Math.min(FLEET_RATE, DEVICE_RATE * devices.length) / 1000
  const startedAt = clock.now()
  let remaining = devices
  let due = 0
  const timer = setInterval(() => {
    const target = Math.floor((clock.now() - startedAt) * ratePerMs)
    // A stall of the process is not made up for: the burst would measure the simulator and nothing else.
    for (due = Math.max(due, target - devices.length); due < target; due++) {
      remaining[due % Math.max(1, remaining.length)]?.publish()
    }
  }, TICK_MS)
  return {
    stop: (left) => {
      remaining = remaining.filter((device) => !left.has(device))
    },
    end: () => clearInterval(timer),
  }
}
