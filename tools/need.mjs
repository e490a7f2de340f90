// `node tools/need.mjs curl mosquitto_sub`: ends with status 2 and one sentence when one of these commands is missing.
import { accessSync, constants } from 'node:fs'
import { delimiter, join } from 'node:path'

/** The Debian package of a command, where it has another name. */
const PACKAGES = {
  mosquitto_sub: 'mosquitto-clients',
  mosquitto_pub: 'mosquitto-clients',
  base64: 'coreutils',
  gcc: 'gcc libc6-dev libpaho-mqtt-dev python3-paho-mqtt',
  sha256sum: 'coreutils',
  pki: 'strongswan-pki libstrongswan-standard-plugins',
  'softhsm2-util': 'softhsm2',
  'pkcs11-tool': 'opensc libengine-pkcs11-openssl',
}

const missing = process.argv.slice(2).filter((command) => !isInstalled(command))
if (missing.length > 0) {
  const packages = [...new Set(missing.map((command) => PACKAGES[command] ?? command))]
  process.stderr.write(
    `These tests run ${missing.join(', ')}, which this machine does not have: apt-get install ${packages.join(' ')}\n`,
  )
  process.exit(2)
}

function isInstalled(command) {
  const places = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin'] // where Debian puts servers
  return places.some((directory) => {
    try {
      accessSync(join(directory, command), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}
