import { readTrust, type TrustRecord, trustTopic } from '#shared/trust-bundle'
import type { OpenLink } from './mqtt-link.ts'

/**
 * Links that hear what the broker says of the trust bundle. A subscription that is denied changes nothing else: the
 * answer to a renewal tells of the bundle, too.
 * @param heard takes up a bundle for the device with this id
 */
export function hearingTrust(
  openLink: OpenLink,
  heard: (device: string, bundle: TrustRecord) => Promise<void>,
): OpenLink {
  return async (options) => {
    const topic = trustTopic(options.clientId)
    const onMessage = (at: string, payload: Buffer) => {
      const bundle = at === topic ? readTrust(payload) : null
      if (bundle === null) options.onMessage?.(at, payload)
      else heard(options.clientId, bundle).catch(() => {}) // the bundle that it has serves on
    }
    const link = await openLink({ ...options, onMessage })
    link.subscribe(topic).catch(() => {}) // the link has closed, or the policy denies it
    return link
  }
}
