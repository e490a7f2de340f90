import type { Policy } from '#shared/feed'

export const DEFAULT_FLEET = 'default'

/** 30 days, ms. */
export const DEFAULT_LIFETIME_MS = 30 * 86_400_000

/** A device has its own branch, and hears what is said to its whole fleet; the placeholders are the broker's. */
export const DEFAULT_POLICY: Policy = {
  publish: [`devices/${'$'}{device.id}/#`],
  subscribe: [`devices/${'$'}{device.id}/#`, `fleets/${'$'}{device.fleet}/broadcast/#`],
}

/** A service reads what every device says, and sends commands. */
export const SERVICES_POLICY: Policy = {
  publish: ['devices/+/commands/#'],
  subscribe: ['devices/#', 'muster/presence/#'],
}
